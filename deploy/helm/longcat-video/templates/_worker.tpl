{{/*
The metadata and spec of a pod of workers. Call with (dict "root" $ "pool" $pool "labels" $labels "claims" true).
A pod claims jobs unless it is a further node of a group: that one runs ranks alone, so it has neither Redis nor the storage.
*/}}
{{- define "longcat.workerPod" -}}
{{- $root := .root }}
{{- $pool := .pool }}
{{- $labels := .labels }}
{{- $claims := .claims }}
{{- $hasNodes := gt (int $pool.nodes) 1 }}
{{- $fetchesWithKeys := and (hasPrefix "s3://" $pool.weights.source) (include "longcat.hasS3Keys" $root) -}}
metadata:
  labels:
    {{- include "longcat.selector" $labels | nindent 4 }}
    longcat-video/role: worker
  annotations:
    checksum/secrets: {{ toYaml $root.Values.secrets | sha256sum }}
    {{- with $pool.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "longcat.fullname" $root | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $pool.terminationGraceS }}
  {{- with $pool.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- with $pool.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext: {{- include "longcat.podSecurity" $root | nindent 4 }}
  {{- with $pool.weights.source }}
  # Pods that share the volume wait for the one that downloads. The worker mounts the volume read-only.
  initContainers:
    - name: weights
      image: {{ include "longcat.image" (list $root $pool.image) }}
      imagePullPolicy: {{ $pool.image.pullPolicy }}
      args:
        - python
        - -m
        - model.weights
        - fetch
        - {{ . | quote }}
        - {{ printf "/checkpoint/%s" $pool.checkpointSubPath | trimSuffix "/" | quote }}
        - --connections={{ $pool.weights.connections }}
        {{- if hasPrefix "s3://" . }}
        - {{ printf "--s3-region=%s" (default $root.Values.storage.s3.region $pool.weights.s3.region) | quote }}
        {{- with default $root.Values.storage.s3.endpointUrl $pool.weights.s3.endpointUrl }}
        - {{ printf "--s3-endpoint-url=%s" . | quote }}
        {{- end }}
        {{- if $fetchesWithKeys }}
        - --s3-access-key-id-file=/run/secrets/longcat/s3_access_key_id
        - --s3-secret-access-key-file=/run/secrets/longcat/s3_secret_access_key
        {{- end }}
        {{- end }}
      env:
        - {name: HOME, value: /tmp}
      securityContext: {{- include "longcat.containerSecurity" $root | nindent 8 }}
      resources: {{- toYaml $pool.weights.resources | nindent 8 }}
      volumeMounts:
        - {name: checkpoint, mountPath: /checkpoint}
        - {name: tmp, mountPath: /tmp}
        {{- if $fetchesWithKeys }}
        - {name: secrets, mountPath: /run/secrets/longcat, readOnly: true}
        {{- end }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "longcat.image" (list $root $pool.image) }}
      imagePullPolicy: {{ $pool.image.pullPolicy }}
      env:
        {{- $own := include "longcat.workerEnv" . }}
        {{- include "longcat.environment" (list $own $root.Values.settings $pool.settings) | nindent 8 }}
      ports:
        - {name: health, containerPort: 8001, protocol: TCP}
        {{- if $hasNodes }}
        - {name: rendezvous, containerPort: 29500, protocol: TCP}
        {{- end }}
      # A group that loads its weights is alive; one that is stuck is not. So no startup probe is needed for loading.
      startupProbe:
        httpGet: {path: /livez, port: health}
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /livez, port: health}
        periodSeconds: 15
        timeoutSeconds: 5
        failureThreshold: 4
      readinessProbe:
        httpGet: {path: /readyz, port: health}
        periodSeconds: 5
        timeoutSeconds: 5
      securityContext: {{- include "longcat.containerSecurity" $root | nindent 8 }}
      resources: {{- include "longcat.workerResources" (list $root $pool) | nindent 8 }}
      volumeMounts:
        {{- if $claims }}
        - {name: secrets, mountPath: /run/secrets/longcat, readOnly: true}
        {{- end }}
        - {name: work, mountPath: /var/lib/longcat}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- if $pool.checkpoint }}
        - name: checkpoint
          mountPath: /checkpoint
          readOnly: true
          {{- with $pool.checkpointSubPath }}
          subPath: {{ . | quote }}
          {{- end }}
        {{- end }}
        {{- if $pool.compileCache }}
        - {name: compile-cache, mountPath: /var/cache/longcat}
        {{- end }}
        {{- if and $claims (not (include "longcat.isS3" $root)) }}
        - {name: storage, mountPath: /storage}
        {{- end }}
  volumes:
    {{- if or $claims $fetchesWithKeys }}
    {{- include "longcat.secretVolume" (list $root (ternary (list "redis_url") list $claims)) | nindent 4 }}
    {{- end }}
    - name: work
      emptyDir: {sizeLimit: {{ $pool.workSize | quote }}}
    - name: tmp # compiled kernels without compileCache
      emptyDir: {sizeLimit: 20Gi}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $pool.sharedMemorySize | quote }}}
    {{- with $pool.checkpoint }}
    - name: checkpoint
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $pool.compileCache }}
    - name: compile-cache
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- if $claims }}
    {{- include "longcat.storageVolume" $root | nindent 4 }}
    {{- end }}
  {{- with $pool.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pool.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pool.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pool.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* What the chart itself sets in the environment of a worker. Call as longcat.workerPod. */}}
{{- define "longcat.workerEnv" -}}
{{- $root := .root -}}{{- $pool := .pool -}}{{- $claims := .claims -}}
{{- $hasNodes := gt (int $pool.nodes) 1 -}}
{{- if $claims }}
{{- include "longcat.sharedEnv" $root | nindent 0 }}
{{- else }}
- {name: LONGCAT_LOG_FORMAT, value: json}
{{- end }}
- {name: HOME, value: /var/lib/longcat}
- {name: LONGCAT_DATA_DIR, value: /var/lib/longcat}
- {name: LONGCAT_MODEL_ID, value: {{ $pool.modelId | quote }}}
- {name: LONGCAT_RANKS, value: {{ max 1 (int $pool.gpus) | quote }}}
{{- if $pool.contextParallel }}
- {name: LONGCAT_CONTEXT_PARALLEL, value: {{ $pool.contextParallel | quote }}}
{{- end }}
{{- if $hasNodes }}
- {name: LONGCAT_NODES, value: {{ $pool.nodes | quote }}}
- {name: LONGCAT_NODE_RANK, value: $(LWS_WORKER_INDEX)}
- {name: LONGCAT_RENDEZVOUS, value: "$(LWS_LEADER_ADDRESS):29500"}
{{- end }}
- {name: LONGCAT_DEVICE, value: {{ ternary "cuda" "cpu" (gt (int $pool.gpus) 0) }}}
{{- if $pool.compileCache }}
- {name: LONGCAT_COMPILE_CACHE_DIR, value: /var/cache/longcat}
{{- end }}
{{- if $pool.checkpoint }}
- {name: LONGCAT_CHECKPOINT, value: /checkpoint}
{{- end }}
- {name: LONGCAT_DRAIN_S, value: {{ $pool.drainS | quote }}}
- {name: LONGCAT_TERMINATION_GRACE_S, value: {{ $pool.terminationGraceS | quote }}}
- {name: LONGCAT_START_LIMIT_S, value: {{ $pool.startupLimitS | quote }}}
- {name: LONGCAT_HEALTH_HOST, value: 0.0.0.0}
- {name: LONGCAT_HEALTH_PORT, value: "8001"}
{{- end -}}

{{/*
Resources of a worker. Weights that are streamed lie in host memory. In bfloat16 they take 74 GiB, which all ranks share,
or 27 GiB for each rank if that is less. Call with (list $ $pool).
*/}}
{{- define "longcat.workerResources" -}}
{{- $root := index . 0 -}}{{- $pool := index . 1 -}}
{{- $gpus := int $pool.gpus -}}
{{- $settings := mergeOverwrite (deepCopy $root.Values.settings) $pool.settings -}}
{{- $streams := get $settings "STREAM_WEIGHTS" | toString | lower -}}
{{- $streamed := ternary (min 80 (mul 32 (max 1 $gpus))) 0 (has $streams (list "1" "on" "t" "true" "y" "yes")) -}}
{{- $requests := dict "memory" (printf "%dGi" (add 64 $streamed)) -}}
{{- $limits := dict "memory" (printf "%dGi" (add 128 $streamed)) -}}
{{- $resources := mergeOverwrite (dict "requests" $requests "limits" $limits) $pool.resources -}}
{{- if gt $gpus 0 -}}
{{- $_ := set $resources.limits $pool.gpuResource $gpus -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
