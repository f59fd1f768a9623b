{{/*
What the parts' pods share. All take (dict "root" $ "part" NAME). The volumes' names begin with keypulse-, because the
exporter's may stand beside those of a pod of yours.
*/}}

{{/*
What in a URL is a secret, in capitals or not: who stands before the host (of a database, a password there), a parameter
that is called so and is no {placeholder}, an address that whoever knows it may post to.
*/}}
{{- define "keypulse.secretInURL" -}}
{{- $names := list
  `((access|api|auth|id|private|refresh|security|session|x-amz-security)[_-]?)?token`
  `((access|api|integration|routing|secret)[_-]?)?key`
  `((api|app|client|oauth_client)[_-]?)?secret`
  `(ssl)?password|passwd|pwd`
  `(x-amz-|x-goog-)?signature|sig`
-}}
{{- list
  `(?i)https?://[^/?#"\s]*@`
  `[a-z]://[^/?#"\s]*:[^/?#"\s]*@`
  (printf `[?&](%s)=[^{&"\s]` (join "|" $names))
  `hooks\.slack\.com/(services|workflows|triggers)/`
  `/api/webhooks/[0-9]+/`
  `\.webhook\.office\.com/webhookb2/`
  | join "|" -}}
{{- end }}

{{- define "keypulse.configuration" -}}
{{- $values := index .root.Values .part -}}
{{- range list $values.config.database (dig "driver" "database" "" $values.config) -}}
{{- if regexMatch (include "keypulse.secretInURL" $) (. | default "") -}}
{{- fail (printf "%s.config: a password would stand in a ConfigMap; expected it in the Secret %s.postgres.existingSecret" $.part $.part) -}}
{{- end -}}
{{- end -}}
{{- range list "config" "env" -}}
{{- if regexMatch (include "keypulse.secretInURL" $) (get $values . | toRawJson) -}}
{{- fail (printf "%s.%s: a URL with a secret in it would stand where many may read it; expected the URL without, or in a file of the Secret %s.existingSecret" $.part . $.part) -}}
{{- end -}}
{{- end -}}
{{- $listen := dict -}}
{{- if ne .part "rotator" }}{{ $_ := set $listen "listen" (printf "0.0.0.0:%s" (include "keypulse.port" .)) }}{{ end -}}
{{- if $values.templates }}{{ $_ := set $listen "messages" (dict "templates" "/etc/keypulse") }}{{ end -}}
{{- toYaml (merge $listen $values.config) -}}
{{- end }}

{{/*
A pod is made anew when its configuration or a Secret is another at the next install or upgrade. The Secret's uid is
hashed with it, so that nobody who may look at pods can try passwords against the sum. `helm template` sees no cluster:
without the Secrets it leaves their sum out.
*/}}
{{- define "keypulse.checksums" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- $values := index .root.Values .part -}}
{{- $seen := list -}}
{{- range compact (list $values.existingSecret (dig "web" "existingSecret" "" $values) (dig "postgres" "existingSecret" "" $values)) -}}
{{- with lookup "v1" "Secret" $namespace . }}{{ $seen = append $seen (list .metadata.uid .data) }}{{ end -}}
{{- end -}}
checksum/config: {{ include "keypulse.configuration" . | sha256sum }}
{{- with $seen }}
checksum/secrets: {{ toJson . | sha256sum }}
{{- end }}
{{- end }}

{{- define "keypulse.podMetadata" -}}
labels: {{- include "keypulse.labels" (dict "root" .root "part" .part "labels" (index .root.Values .part).podLabels) | nindent 2 }}
annotations:
  kubectl.kubernetes.io/default-container: {{ .part }}
  {{- include "keypulse.checksums" . | nindent 2 }}
  {{- with (index .root.Values .part).podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{/* What of a pod's spec is not its containers. */}}
{{- define "keypulse.podSpec" -}}
{{- $values := index .root.Values .part -}}
serviceAccountName: {{ include "keypulse.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  seccompProfile: {type: RuntimeDefault}
  {{- with .root.Values.podSecurityContext }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
volumes: {{- include "keypulse.volumes" . | nindent 2 }}
{{- end }}

{{- define "keypulse.volumes" -}}
{{- $values := index .root.Values .part -}}
- name: keypulse-config
  configMap: {name: {{ include "keypulse.partName" . }}}
- name: keypulse-secret
  secret: {secretName: {{ $values.existingSecret | quote }}}
{{- with dig "web" "existingSecret" "" $values }}
- name: keypulse-web
  secret: {secretName: {{ . | quote }}}
{{- end }}
{{- with dig "postgres" "existingSecret" "" $values }}
- name: keypulse-postgres
  secret: {secretName: {{ . | quote }}}
{{- end }}
- name: keypulse-data
  {{- if include "keypulse.hasVolume" . }}
  persistentVolumeClaim: {claimName: {{ $values.persistence.existingClaim | default (include "keypulse.partName" .) | quote }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- with $values.extraVolumes }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{/* What every container of a part has, whatever it runs. */}}
{{- define "keypulse.containerBase" -}}
{{- $values := index .root.Values .part -}}
image: {{ include "keypulse.image" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- $password := dig "postgres" "existingSecret" "" $values }}
{{- if or $values.env $password }}
env:
  {{- range $name, $value := $values.env }}
  - {name: {{ $name | quote }}, {{ if kindIs "map" $value }}valueFrom: {{ toJson $value }}{{ else }}value: {{ $value | quote }}{{ end }}}
  {{- end }}
  {{- if $password }}
  - {name: PGPASSWORD_FILE, value: {{ printf "/run/secrets/keypulse-postgres/%s" $values.postgres.key | quote }}}
  {{- end }}
{{- end }}
resources: {{- toYaml $values.resources | nindent 2 }}
securityContext: {{- include "keypulse.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: keypulse-config, mountPath: /etc/keypulse, readOnly: true}
  - {name: keypulse-secret, mountPath: /run/secrets/keypulse, readOnly: true}
  {{- if dig "web" "existingSecret" "" $values }}
  - {name: keypulse-web, mountPath: /run/secrets/keypulse-web, readOnly: true}
  {{- end }}
  {{- if $password }}
  - {name: keypulse-postgres, mountPath: /run/secrets/keypulse-postgres, readOnly: true}
  {{- end }}
  - {name: keypulse-data, mountPath: /var/lib/keypulse}
  {{- with $values.extraVolumeMounts }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{- define "keypulse.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
