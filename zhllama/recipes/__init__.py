"""What zhllama ships to be changed: recipes, launch scripts, DeepSpeed files; links in a checkout, copies in a wheel."""
