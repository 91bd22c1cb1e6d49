"""What a model computes, module by module, from three sources that must agree."""
