"""The operator: pure modules that turn what is there into a plan, and the shell around them."""
