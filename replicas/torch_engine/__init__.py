"""The embedded engine: continuous batching over one causal KV cache, on CPU and CUDA."""
