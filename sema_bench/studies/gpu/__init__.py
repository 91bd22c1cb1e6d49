"""``sema-bench selftest --gpu``: prove on a card that its measurements are right, in half an hour."""
