"""The stages of training, and the only Trainer."""
