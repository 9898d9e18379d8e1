"""One model, three ways to decode."""
