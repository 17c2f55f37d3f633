"""The verbs of the `vol3d` command, each a thin call of one public function."""
