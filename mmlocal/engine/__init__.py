"""What MMEngine's registries find: hooks, optimizer wrappers and their constructors."""
