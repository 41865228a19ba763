"""What differs between CPU and CUDA: layers, attention, loss, memory."""
