# In place of the image python: `python` and `pip` in /usr/local.
ARG BASE
FROM ${BASE}
RUN python3 -m venv /usr/local
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
