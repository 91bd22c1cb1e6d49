"""One cell, measured in a process of its own. The only part of the core that imports torch."""
