"""Chinese vocabulary extension, continued pretraining and instruction tuning for LLaMA-family models."""
