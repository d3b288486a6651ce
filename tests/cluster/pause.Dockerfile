# The image of the container that holds a pod's namespaces. Any base with a shell serves.
ARG BASE
FROM ${BASE}
ENTRYPOINT ["sleep", "infinity"]
