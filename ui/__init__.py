"""The page: rows become pictures. Knows gradio; never torch, transformers or sqlite."""
