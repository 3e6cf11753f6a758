"""Ways of reading that are faster than torch, chosen by device; each is loaded when it is first needed."""
