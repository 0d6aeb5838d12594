{{- define "observer-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "observer-agent.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "observer-agent.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "observer-agent.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What never changes between versions: selectors. */}}
{{- define "observer-agent.selector" -}}
app.kubernetes.io/name: {{ include "observer-agent.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "observer-agent.labels" -}}
{{ include "observer-agent.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "observer-agent.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "observer-agent.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Whether the API server is asked at all. */}}
{{- define "observer-agent.asksCluster" -}}
{{- if or .Values.discovery.enabled .Values.clusterStats.enabled }}true{{ end -}}
{{- end -}}

{{/* Whether discovery follows every namespace. */}}
{{- define "observer-agent.allNamespaces" -}}
{{- if or (empty .Values.discovery.namespaces) (has "*" .Values.discovery.namespaces) }}true{{ end -}}
{{- end -}}

{{- define "observer-agent.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* The settings that both kinds of pod share. */}}
{{- define "observer-agent.env" -}}
- {name: CLOUD_DIALECT, value: lighthouse}
- {name: LIGHTHOUSE_TOKEN_FILE, value: /run/lighthouse/token}
- {name: LIGHTHOUSE_DATA_DIR, value: /var/lib/observer-agent}
- {name: BUFFER_PATH, value: /var/lib/observer-agent/events.db}
- {name: LIGHTHOUSE_WIRE, value: {{ .Values.wire }}}
- {name: LIGHTHOUSE_LOG_LEVEL, value: {{ .Values.logLevel }}}
- {name: LIGHTHOUSE_HEALTH_PORT, value: {{ .Values.healthPort | quote }}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- with .Values.url }}
- {name: LIGHTHOUSE_URL, value: {{ . | quote }}}
{{- end }}
{{- if .Values.ca.configMap }}
- {name: REQUESTS_CA_BUNDLE, value: /run/ca/{{ .Values.ca.key }}}
{{- end }}
{{- end -}}

{{- define "observer-agent.mounts" -}}
- {name: token, mountPath: /run/lighthouse, readOnly: true}
- {name: data, mountPath: /var/lib/observer-agent}
- {name: tmp, mountPath: /tmp}
{{- if .Values.ca.configMap }}
- {name: ca, mountPath: /run/ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "observer-agent.volumes" -}}
- name: token
  secret:
    secretName: {{ default (include "observer-agent.fullname" .) .Values.existingSecret.name }}
    defaultMode: 0440
    items:
      - {key: {{ ternary .Values.existingSecret.key "token" (ne .Values.existingSecret.name "") }}, path: token}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if .Values.ca.configMap }}
- name: ca
  configMap: {name: {{ .Values.ca.configMap }}}
{{- end }}
{{- end -}}

{{- define "observer-agent.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "observer-agent.probes" -}}
ports:
  - {name: health, containerPort: {{ .Values.healthPort }}}
livenessProbe:
  httpGet: {path: /healthz/live, port: health}
  initialDelaySeconds: 30
  periodSeconds: 30
  timeoutSeconds: 3
readinessProbe:
  httpGet: {path: /healthz/ready, port: health}
  initialDelaySeconds: 5
  periodSeconds: 10
  timeoutSeconds: 3
{{- end -}}
