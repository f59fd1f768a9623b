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
{{- $service := (index .root.Values .part).service -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "keypulse.metadata" . | nindent 2 }}
  {{- with $service.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $service.type }}
  selector: {{- .selector | nindent 4 }}
  ports:
    - {name: {{ include "keypulse.scheme" . }}, port: {{ include "keypulse.port" . }}, targetPort: {{ .part }}}
{{- end }}

{{/* The Ingress and the HTTPRoute of exporter or relay, for the host and the path of its public address. */}}
{{- define "keypulse.routes" -}}
{{- $values := index .root.Values .part -}}
{{- $url := urlParse (include "keypulse.publicUrl" .) -}}
{{- $key := get (dict "exporter" "exporter.publicUrl" "relay" "relay.config.auth.public_url") .part -}}
{{- if not (regexMatch `^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z]([a-z0-9-]*[a-z0-9])?$` $url.hostname) -}}
{{- fail (printf "%s: Ingress and HTTPRoute serve its host and path; expected a name in it, such as https://%s.example.org" $key .part) -}}
{{- end -}}
{{- if and (eq .part "exporter") $url.path -}}
{{- fail "exporter.publicUrl: Ingress and HTTPRoute leave its path in, and the board knows none; expected a host of its own" -}}
{{- end -}}
{{- if not (regexMatch "^(/[A-Za-z0-9_.~-]+)*$" $url.path) -}}
{{- fail (printf "%s: expected a path of letters, digits and -._~ such as /keypulse" $key) -}}
{{- end -}}
{{- if $values.ingress.enabled -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "keypulse.metadata" . | nindent 2 }}
  {{- with $values.ingress.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with $values.ingress.className }}
  ingressClassName: {{ . | quote }}
  {{- end }}
  {{- if eq $url.scheme "https" }}
  tls:
    - hosts: [{{ $url.hostname | quote }}]
      {{- with $values.ingress.tlsSecret }}
      secretName: {{ . | quote }}
      {{- end }}
  {{- end }}
  rules:
    - host: {{ $url.hostname | quote }}
      http:
        paths:
          - path: {{ $url.path | default "/" | quote }}
            pathType: Prefix
            backend: {service: {name: {{ include "keypulse.partName" . }}, port: {name: {{ include "keypulse.scheme" . }}}}}
{{- end }}
{{- if $values.httpRoute.enabled }}
{{- if not $values.httpRoute.parentRefs }}
{{- fail (printf "%s.httpRoute.parentRefs: empty; expected the Gateway, such as {name: public, namespace: gateways}" .part) }}
{{- end }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  {{- include "keypulse.metadata" . | nindent 2 }}
  {{- with $values.httpRoute.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  parentRefs: {{- toYaml $values.httpRoute.parentRefs | nindent 4 }}
  hostnames: [{{ $url.hostname | quote }}]
  rules:
    - matches:
        - path: {type: PathPrefix, value: {{ $url.path | default "/" | quote }}}
      backendRefs:
        - {name: {{ include "keypulse.partName" . }}, port: {{ include "keypulse.port" . }}}
{{- end }}
{{- end }}
