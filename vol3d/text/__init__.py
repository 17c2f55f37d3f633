"""Words: the findings we know, and what a report says about them. Needs neither torch nor the network."""
