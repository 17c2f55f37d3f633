"""How good a model is, with an interval and a baseline beside every score."""
