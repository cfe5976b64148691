"""Our models in the formats of other programs: Hugging Face's ViTMAE and ViT, timm's ViT, and ONNX."""
