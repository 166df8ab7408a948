"""Rows -> Plotly figures or escaped HTML. Pure: no gradio."""
