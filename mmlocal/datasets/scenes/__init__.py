"""Generated scenes in depth, with exact labels for every task of multi-task dense prediction."""
