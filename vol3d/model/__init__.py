"""Volume tokens and words: the interfaces of the parts, projectors, language models, and a saved model at work."""
