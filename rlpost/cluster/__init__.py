"""A recipe as the objects that a Kubernetes cluster runs it from."""
