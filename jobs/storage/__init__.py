"""Store files of jobs: in a folder or in S3."""
