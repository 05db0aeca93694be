"""The parent: starts the workers, watches them, starts them again, and answers the operator."""
