"""How the documentation becomes a site: MkDocs' settings, pages that are made, pictures, and code that is run."""
