"""vlx: vision-language modelling from Show and Tell to LLaVA, in pure-functional JAX."""
