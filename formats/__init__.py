"""Files: `.qzc` and safetensors in and out, and what belongs to a checkpoint. The only room that opens files."""
