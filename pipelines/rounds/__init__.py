"""Mine -> score -> train, again and again: `distillation`, or with a ranker that learns along, `adversarial`."""
