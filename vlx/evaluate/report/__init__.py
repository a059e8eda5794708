import matplotlib

matplotlib.use("Agg")  # files, never a window
matplotlib.rcParams["text.parse_math"] = False  # a caption with two "$" is no formula
