"""The model: growing its embeddings, what of it trains, its loss, and merging adapters back."""
