"""Install the Helm chart on a real Kubernetes: `make cluster-test`, or `python -m tests.cluster`.

Kubernetes is built once from Debian's source package, and runs in namespaces of its own, which end with the
test and everything in them. Needs root and Debian's packages; `tests.cluster.programs` lists them.
"""
