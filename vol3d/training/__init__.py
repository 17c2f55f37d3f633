"""Training by a recipe: one LightningModule, its stages, and what a run leaves behind."""
