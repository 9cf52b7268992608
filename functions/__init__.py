"""Cloud functions: stateless, untrusted, each a cloud-free service with one thin entry per cloud."""
