"""Chinese vocabulary: train it, merge it into a base tokenizer, check and report it."""
