"""Recipes: complete YAML files for `vol3d fit --config`, with parts to swap and overlays to add."""

if __name__ != "vol3d.recipes":
    raise ImportError("import vol3d.recipes, not the folder recipes")
