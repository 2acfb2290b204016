"""Every model class of transformers for five tasks: traced and right, or refused with a reason."""
