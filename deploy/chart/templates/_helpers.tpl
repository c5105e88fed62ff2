{{/* A setting's value as the operator reads it from a variable: lists with commas, objects as JSON. */}}
{{- define "kubequant.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "map" . }}{{ toJson . }}
{{- else if kindIs "float64" . }}{{ int64 . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{/* The operator's image: [registry/]repository:tag, or with @digest instead of the tag. */}}
{{- define "kubequant.image" -}}
{{- with .Values.settings.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Who gets the ClusterRole of the operator. */}}
{{- define "kubequant.subjects" -}}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: kubequant-operator
subjects:
- kind: ServiceAccount
  name: kubequant-operator
  namespace: {{ .Release.Namespace }}
{{- end }}
