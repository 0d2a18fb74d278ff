"""Who may do what: identities and their grants, what each call needs, and where identities come from."""
