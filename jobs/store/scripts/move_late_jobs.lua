-- include: queue, allow_when_full
-- Give late jobs the places in which the next claim would find them.
move_late_jobs()
