"""The dual encoder: model, text encoding, export."""
