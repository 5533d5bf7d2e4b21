"""From a spec to a lease: what is there already, what has to be built, and whose turn that is."""
