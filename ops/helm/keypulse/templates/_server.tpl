{{/* The parts that serve: exporter, relay and backend. All take (dict "root" $ "part" NAME). */}}

{{- define "keypulse.server" -}}
{{- $web := (index .root.Values .part).web -}}
{{- $scheme := include "keypulse.scheme" . | upper -}}
{{- if and $web.tls (not $web.existingSecret) -}}
{{- fail (printf "%s.web.tls: without %s.web.existingSecret, whose web.yml has the TLS, the part would speak none" .part .part) -}}
{{- end -}}
name: {{ .part }}
command: [keypulse-{{ .part }}]
args:
  - --config=/etc/keypulse/{{ .part }}.yml
  {{- if $web.existingSecret }}
  - --web.config.file=/run/secrets/keypulse-web/web.yml
  {{- end }}
ports:
  - {name: {{ .part }}, containerPort: {{ include "keypulse.port" . }}}
# A start may have a database's tables to bring up to date, or a database to wait for: five minutes.
startupProbe:
  httpGet: {path: /-/healthy, port: {{ .part }}, scheme: {{ $scheme }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /-/healthy, port: {{ .part }}, scheme: {{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /-/ready, port: {{ .part }}, scheme: {{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{ include "keypulse.containerBase" . }}
{{- end }}

{{/* A volume that one pod holds has to be let go before the next one starts; else the next is ready first. */}}
{{- define "keypulse.deployment" -}}
{{- $values := index .root.Values .part -}}
{{- $replicas := $values.replicas | default 1 | int -}}
{{- if eq .part "exporter" }}{{ $replicas = ternary 1 0 (include "keypulse.watches" . | eq "true") }}{{ end -}}
apiVersion: apps/v1
kind: Deployment
metadata: {{- include "keypulse.metadata" . | nindent 2 }}
spec:
  replicas: {{ $replicas }}
  selector:
    matchLabels: {{- include "keypulse.selector" . | nindent 6 }}
  strategy:
    {{- if include "keypulse.hasVolume" . }}
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
    {{- end }}
  template:
    metadata: {{- include "keypulse.podMetadata" . | nindent 6 }}
    spec:
      # Every server is gone within 15 s of SIGTERM.
      terminationGracePeriodSeconds: 20
      {{- if gt $replicas 1 }}
      topologySpreadConstraints:
        {{- $part := . }}
        {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "keypulse.selector" $part | nindent 14 }}
        {{- end }}
      {{- end }}
      {{- include "keypulse.podSpec" . | nindent 6 }}
      containers:
        - {{- include "keypulse.server" . | nindent 10 }}
{{- if gt $replicas 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "keypulse.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "keypulse.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* Takes a `selector`, too: the labels of the pods. */}}
{{- define "keypulse.service" -}}
apiVersion: v1
kind: Service
metadata: {{- include "keypulse.metadata" . | nindent 2 }}
spec:
  selector: {{- .selector | nindent 4 }}
  ports:
    - {name: {{ include "keypulse.scheme" . }}, port: {{ include "keypulse.port" . }}, targetPort: {{ .part }}}
{{- end }}
