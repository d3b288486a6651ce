{{- define "longcat.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $full) -}}
{{- fail (printf "%q cannot be the name of a Service, which begins with a letter and has letters, digits and hyphens: set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* Labels of every object. Call with (list $ "component"). */}}
{{- define "longcat.labels" -}}
{{- $root := index . 0 -}}
{{ include "longcat.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "longcat.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: longcat-video
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* An image reference. Call with (list $ $image). */}}
{{- define "longcat.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- if $image.digest -}}{{ printf "%s@%s" $image.repository $image.digest | quote }}
{{- else -}}{{ printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) | quote }}{{- end -}}
{{- end -}}

{{- define "longcat.secretName" -}}
{{- default (include "longcat.fullname" .) .Values.existingSecret -}}
{{- end -}}

{{- define "longcat.isS3" -}}
{{- if hasPrefix "s3://" .Values.storage.url }}true{{ end -}}
{{- end -}}

{{- define "longcat.hasS3Keys" -}}
{{- if and (include "longcat.isS3" .) (eq .Values.storage.s3.credentials "secret") }}true{{ end -}}
{{- end -}}

{{/* Environment of the API and the workers. Secrets are files: an environment is shown by `kubectl describe`. */}}
{{- define "longcat.sharedEnv" -}}
- {name: LONGCAT_REDIS_URL_FILE, value: /run/secrets/longcat/redis_url}
- {name: LONGCAT_LOG_FORMAT, value: json}
{{- if include "longcat.isS3" . }}
- {name: LONGCAT_STORAGE, value: {{ .Values.storage.url | quote }}}
- {name: LONGCAT_S3_REGION, value: {{ .Values.storage.s3.region | quote }}}
{{- with .Values.storage.s3.endpointUrl }}
- {name: LONGCAT_S3_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.storage.s3.publicEndpointUrl }}
- {name: LONGCAT_S3_PUBLIC_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- if include "longcat.hasS3Keys" . }}
- {name: LONGCAT_S3_ACCESS_KEY_ID_FILE, value: /run/secrets/longcat/s3_access_key_id}
- {name: LONGCAT_S3_SECRET_ACCESS_KEY_FILE, value: /run/secrets/longcat/s3_secret_access_key}
{{- end }}
{{- else }}
- {name: LONGCAT_STORAGE, value: /storage}
{{- end }}
{{- end -}}

{{/*
An environment with settings from values, which replace its own: server-side apply refuses a name that is there twice.
Call with (list $environment $settings $more); maps of settings have names without LONGCAT_, and later ones win.
Helm reads numbers as floats, whose text would be 1e+06 for a million.
*/}}
{{- define "longcat.environment" -}}
{{- $values := dict -}}
{{- range fromYamlArray (index . 0) }}{{ $_ := set $values .name .value }}{{ end -}}
{{- range $settings := rest . }}
{{- range $name, $value := $settings }}
{{- if kindIs "float64" $value }}{{ $value = ternary (int64 $value) $value (eq $value (floor $value)) }}{{ end -}}
{{- $_ := set $values (printf "LONGCAT_%s" $name) (toString $value) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $values }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{/* The volume of the secrets. Call with (list $ (list of keys)). */}}
{{- define "longcat.secretVolume" -}}
{{- $root := index . 0 -}}
- name: secrets
  secret:
    secretName: {{ include "longcat.secretName" $root | quote }}
    defaultMode: 0440
    items:
      {{- range index . 1 }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
      {{- if include "longcat.hasS3Keys" $root }}
      - {key: s3_access_key_id, path: s3_access_key_id}
      - {key: s3_secret_access_key, path: s3_secret_access_key}
      {{- end }}
{{- end -}}

{{- define "longcat.storageVolume" -}}
{{- if not (include "longcat.isS3" .) }}
- name: storage
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-storage" (include "longcat.fullname" .)) .Values.storage.volume.existingClaim | quote }}
{{- end }}
{{- end -}}

{{- define "longcat.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "longcat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "longcat.poolName" -}}
{{- printf "%s-worker-%s" (include "longcat.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{/* The number of groups of a pod of this pool: with `auto`, each GPU is one. */}}
{{- define "longcat.groupsPerPod" -}}
{{- $ranks := max 1 (int .gpus) -}}
{{- if eq (toString .contextParallel) "auto" }}{{ $ranks }}{{ else if .contextParallel }}{{ div $ranks (int .contextParallel) }}{{ else }}1{{ end -}}
{{- end -}}

{{/* What the API and the workers may reach: names, Redis of the chart, and public addresses (S3, inputs, webhooks). */}}
{{- define "longcat.commonEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- if .Values.redis.enabled }}
- ports: [{port: 6379}]
  to:
    - podSelector:
        matchLabels: {{- include "longcat.selector" (list . "redis") | nindent 10 }}
{{- end }}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        {{- with .Values.networkPolicy.egressExcept }}
        except: {{- toYaml . | nindent 10 }}
        {{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that select the metrics of this release in PromQL, as a list that ends with a comma. */}}
{{- define "longcat.ofRelease" -}}
{{- $selector := .Values.monitoring.metricsSelector -}}
{{- if and (not $selector) .Values.monitoring.serviceMonitor -}}
{{- $selector = printf "namespace=%q,service=%q" .Release.Namespace (printf "%s-api-ops" (include "longcat.fullname" .)) -}}
{{- end -}}
{{- if $selector }}{{ $selector }},{{ end -}}
{{- end -}}

{{/* Refuse values that contradict each other. */}}
{{- define "longcat.checkValues" -}}
{{- $own := list -}}
{{- range $name, $value := .Values.secrets }}{{ if $value }}{{ $own = append $own (printf "secrets.%s" $name) }}{{ end }}{{ end -}}
{{- if and .Values.existingSecret $own -}}
{{- fail (printf "%s would not be used: existingSecret has all secrets" (join ", " $own)) -}}
{{- end -}}
{{- if and .Values.redis.enabled .Values.secrets.redisUrl -}}
{{- fail "secrets.redisUrl would not be used: redis.enabled makes a Redis of the chart's own" -}}
{{- end -}}
{{- if .Values.api.capability -}}
{{- if not (hasKey (fromJson .Values.api.capability) "model") -}}
{{- fail "api.capability must be what `python -m worker.rank.capability` prints: JSON with a model" -}}
{{- end -}}
{{- end -}}
{{- $settings := list .Values.settings .Values.api.settings .Values.poolDefaults.settings -}}
{{- range values .Values.pools }}{{ $settings = append $settings (default dict (default dict .).settings) }}{{ end -}}
{{- $known := .Files.Lines "settings.txt" -}}
{{- range $settings }}{{- range $name, $_ := . -}}
{{- $setting := ternary $name (trimSuffix "_FILE" $name) (has $name $known) -}}
{{- if not (has $setting $known) -}}
{{- fail (printf "settings.%s is not a setting of the API or the worker: see docs/settings.md" $name) -}}
{{- end -}}
{{- if has $setting (list "HOST" "PORT" "OPS_HOST" "OPS_PORT" "HEALTH_HOST" "HEALTH_PORT") -}}
{{- fail (printf "settings.%s cannot be changed: probes and Services use what the chart sets" $name) -}}
{{- end -}}
{{- end }}{{ end -}}
{{- $scaled := dict -}}
{{- range $poolName, $given := .Values.pools -}}
{{- $pool := mergeOverwrite (deepCopy $.Values.poolDefaults) (default dict $given) -}}
{{- if $pool.autoscaling.enabled -}}
{{- with get $scaled $pool.modelId -}}
{{- fail (printf "pools.%s and pools.%s have the same modelId, so their queue is the same: only one of them can have autoscaling" . $poolName) -}}
{{- end -}}
{{- $_ := set $scaled $pool.modelId $poolName -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* How KEDA reads Prometheus. Call with (list $ $url). */}}
{{- define "longcat.prometheusServer" -}}
{{- $monitoring := (index . 0).Values.monitoring -}}
serverAddress: {{ index . 1 | quote }}
ignoreNullValues: "false"
{{- with $monitoring.authentication.modes }}
authModes: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "longcat.prometheusAuthentication" -}}
{{- with .Values.monitoring.authentication.name }}
authenticationRef: {name: {{ . | quote }}}
{{- end }}
{{- end -}}
