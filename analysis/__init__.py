"""Numbers about tensors: entropy, what general compressors make of them, distortion. No files, no printing."""
