"""Count the costs of a model, module by module, from three sources that must agree."""
