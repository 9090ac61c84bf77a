{{/*
Name of the namespaced objects: the operator's Deployment, ServiceAccount, Role and
state Secret. It is the official chart's, so that the device's state carries over. Releases may
have dots in their names, Services may not.
*/}}
{{- define "tailscale-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if .Values.nameOverride -}}
{{- if contains .Values.nameOverride .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Values.nameOverride | replace "." "-" | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- else -}}
operator
{{- end -}}
{{- end -}}

{{/*
Name of another object of this release, from "root" and "suffix": at most 63 characters, as a
Service's may have. A longer one is cut, and has a hash of the name, so that it stays its own.
*/}}
{{- define "tailscale-operator.derivedName" -}}
{{- $fullname := include "tailscale-operator.fullname" .root -}}
{{- $name := printf "%s-%s" $fullname .suffix -}}
{{- if gt (len $name) 63 -}}
{{- $name = printf "%s-%s-%s" ($fullname | trunc (sub 53 (len .suffix) | int) | trimSuffix "-") (sha256sum $fullname | trunc 8) .suffix -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* Namespace of the namespaced objects. */}}
{{- define "tailscale-operator.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/*
Name of the ServiceAccount whose token proxied requests carry. It follows the
overrides, so that two releases in one namespace do not share it.
*/}}
{{- define "tailscale-operator.impersonator" -}}
{{- if or .Values.fullnameOverride .Values.nameOverride -}}
{{- include "tailscale-operator.derivedName" (dict "root" . "suffix" "kube-apiserver-auth-proxy") -}}
{{- else -}}
kube-apiserver-auth-proxy
{{- end -}}
{{- end -}}

{{/*
Name of the cluster-scoped objects. Namespace and name are parts of it, with a
separator that neither can contain, so that no two releases in a cluster collide.
*/}}
{{- define "tailscale-operator.clusterName" -}}
{{- printf "tailscale-auth-proxy:%s:%s" (include "tailscale-operator.namespace" .) (include "tailscale-operator.fullname" .) -}}
{{- end -}}

{{/* Name of the admission policy. It is one like a domain's: a namespace has no dot. */}}
{{- define "tailscale-operator.admissionPolicy" -}}
{{- printf "tailscale-operator.%s.%s" (include "tailscale-operator.namespace" .) (include "tailscale-operator.fullname" .) -}}
{{- end -}}

{{/* Whether the policy is made: Kubernetes has such policies since 1.30. */}}
{{- define "tailscale-operator.hasAdmissionPolicy" -}}
{{- if and .Values.admissionPolicy.enabled (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) -}}true{{- end -}}
{{- end -}}

{{/* Name of the cluster-scoped objects of the controllers. */}}
{{- define "tailscale-operator.controllersName" -}}
{{- printf "tailscale-operator:%s:%s" (include "tailscale-operator.namespace" .) (include "tailscale-operator.fullname" .) -}}
{{- end -}}

{{/* Name of the controllers' Role in the release's namespace. */}}
{{- define "tailscale-operator.controllersRole" -}}
{{- include "tailscale-operator.derivedName" (dict "root" . "suffix" "controllers") -}}
{{- end -}}

{{/* Name of the ConfigMap with what the operator makes of ProxyGroups. */}}
{{- define "tailscale-operator.workloadsName" -}}
{{- include "tailscale-operator.derivedName" (dict "root" . "suffix" "workloads") -}}
{{- end -}}

{{/* What tells this operator from others in the cluster: on ProxyGroups that are its own. */}}
{{- define "tailscale-operator.operatorName" -}}
{{- printf "%s/%s" (include "tailscale-operator.namespace" .) (include "tailscale-operator.fullname" .) -}}
{{- end -}}

{{/*
Not empty if something is to clean up before the release is uninstalled. What renders the chart to apply
it by other means knows no hooks, and would clean up at once. It does not know the cluster's kinds either:
those that helm has asked the cluster for, or that a tool which maps hooks to its own has given.
*/}}
{{- define "tailscale-operator.cleansUp" -}}
{{- if and .Values.cleanup.enabled (include "tailscale-operator.asksCluster" .) (or .Values.controllers.enabled (ne (include "tailscale-operator.mode" .) "false")) -}}
true
{{- end -}}
{{- end -}}

{{/* Not empty if helm has asked a cluster what it knows. Without one, helm has a list of versions, without kinds. */}}
{{- define "tailscale-operator.asksCluster" -}}
{{- if .Capabilities.APIVersions.Has "apps/v1/Deployment" -}}
true
{{- end -}}
{{- end -}}

{{/* Names of the objects that clean up, in the namespace and in the cluster. */}}
{{- define "tailscale-operator.cleanupName" -}}
{{- include "tailscale-operator.derivedName" (dict "root" . "suffix" "cleanup") -}}
{{- end -}}
{{- define "tailscale-operator.cleanupClusterName" -}}
{{- printf "%s:cleanup" (include "tailscale-operator.controllersName" .) -}}
{{- end -}}

{{/*
ServiceAccount that cleans up. A workload identity is that of one ServiceAccount, and so is what a CSI driver
gives a pod, so there it is the operator's.
*/}}
{{- define "tailscale-operator.cleanupAccount" -}}
{{- if or .Values.oauth.audience .Values.oauthSecretVolume -}}
{{- include "tailscale-operator.fullname" . -}}
{{- else -}}
{{- include "tailscale-operator.cleanupName" . -}}
{{- end -}}
{{- end -}}

{{/* Labels of the objects that clean up. */}}
{{- define "tailscale-operator.cleanupLabels" -}}
{{ include "tailscale-operator.chartLabels" . }}
app.kubernetes.io/component: cleanup
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of the objects that clean up, from "root", "weight" and "keep". */}}
{{- define "tailscale-operator.cleanupMetadata" -}}
labels:
  {{- include "tailscale-operator.cleanupLabels" .root | nindent 2 }}
{{- $own := dict "helm.sh/hook" "pre-delete" "helm.sh/hook-weight" .weight "helm.sh/hook-delete-policy" (printf "before-hook-creation,hook-succeeded%s" (ternary "" ",hook-failed" .keep)) }}
{{- if .keep }}
{{- /* So that `helm uninstall` says what is left. */}}
{{- $_ := set $own "helm.sh/hook-output-log-policy" "hook-succeeded,hook-failed" }}
{{- end }}
{{ include "tailscale-operator.annotations" (dict "root" .root "annotations" $own) }}
{{- end -}}

{{/*
Name of a binding of access.bindings, from "root" and "binding". The role is a part of it: that of a
binding cannot be changed, so another role makes another binding.
*/}}
{{- define "tailscale-operator.bindingName" -}}
{{- $role := printf "role:%s" .binding.role -}}
{{- if not .binding.role -}}
{{- $role = printf "clusterrole:%s" .binding.clusterRole -}}
{{- end -}}
{{- printf "tailscale-access:%s:%s:%s:%s" (include "tailscale-operator.namespace" .root) (include "tailscale-operator.fullname" .root) .binding.name $role -}}
{{- end -}}

{{/*
Labels that never change over the life of a release. A Deployment's selector cannot
change, so neither the chart's version nor a name override may be among them.
*/}}
{{- define "tailscale-operator.selectorLabels" -}}
app.kubernetes.io/name: tailscale-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of the replicas of this release's ProxyGroups and Recorders, as the templates of workloads set them. */}}
{{- define "tailscale-operator.replicaSelectorLabels" -}}
app.kubernetes.io/part-of: {{ .Release.Name | quote }}
tailscale.com/managed: "true"
{{- end -}}

{{/* Name of the chart's own objects for them. */}}
{{- define "tailscale-operator.replicaName" -}}
{{- include "tailscale-operator.derivedName" (dict "root" . "suffix" "proxygroups") -}}
{{- end -}}

{{- define "tailscale-operator.chartLabels" -}}
app.kubernetes.io/name: tailscale-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/*
Labels of an object with more of its own, each once: from "root", "component", and "labels", which win over
the common ones, and the chart's over these.
*/}}
{{- define "tailscale-operator.mergedLabels" -}}
{{- $own := include "tailscale-operator.chartLabels" .root | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/component" .component -}}
{{- merge $own .labels .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Labels of the operator's own objects. */}}
{{- define "tailscale-operator.labels" -}}
{{ include "tailscale-operator.chartLabels" . }}
app.kubernetes.io/component: operator
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of the objects behind proxied requests. */}}
{{- define "tailscale-operator.authproxyLabels" -}}
{{ include "tailscale-operator.chartLabels" . }}
app.kubernetes.io/component: auth-proxy
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of the bindings of access.bindings. */}}
{{- define "tailscale-operator.accessLabels" -}}
{{ include "tailscale-operator.chartLabels" . }}
app.kubernetes.io/component: access
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The annotations of an object, with their key, or nothing.
From "root", and "annotations" of this object, which win over the common ones.
*/}}
{{- define "tailscale-operator.annotations" -}}
{{- with merge (deepCopy .annotations) .root.Values.commonAnnotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* "true", "noauth" or "false", whether the value is a string or a boolean. */}}
{{- define "tailscale-operator.mode" -}}
{{- .Values.apiServerProxyConfig.mode | toString -}}
{{- end -}}

{{/* Not empty if something in or outside the operator's pod impersonates callers. */}}
{{- define "tailscale-operator.impersonates" -}}
{{- if or (eq (include "tailscale-operator.mode" .) "true") (eq (toString .Values.apiServerProxyConfig.allowImpersonation) "true") -}}
true
{{- end -}}
{{- end -}}

{{/* Not empty if the operator, or replicas by its leave, take tokens of the impersonator. */}}
{{- define "tailscale-operator.usesImpersonator" -}}
{{- if or (eq (include "tailscale-operator.mode" .) "true") (and .Values.controllers.enabled (include "tailscale-operator.impersonates" .)) -}}
true
{{- end -}}
{{- end -}}

{{/* The --tls flag's word for tls.source. YAML reads a bare off as false. */}}
{{- define "tailscale-operator.tls" -}}
{{- $source := toString .Values.tls.source -}}
{{- get (dict "acme" "acme" "secret" "file" "off" "off" "false" "off") $source -}}
{{- end -}}

{{/* Tags of ProxyGroups that name none, as the operator reads them. */}}
{{- define "tailscale-operator.proxyTags" -}}
{{- .Values.proxyConfig.defaultTags | default "tag:k8s" | splitList "," | toYaml -}}
{{- end -}}

{{/*
Tags of the release's proxies, which send recordings. With no proxy among the values they are those that the proxy in
the operator's pod would have.
*/}}
{{- define "tailscale-operator.senders" -}}
{{- $groupTags := list -}}
{{- range .Values.proxyGroups -}}
{{- $groupTags = concat $groupTags (.tags | default (include "tailscale-operator.proxyTags" $ | fromYamlArray)) | uniq -}}
{{- end -}}
{{- if or (ne (include "tailscale-operator.mode" .) "false") (empty $groupTags) -}}
{{- $groupTags = concat .Values.operatorConfig.defaultTags $groupTags | uniq -}}
{{- end -}}
{{- toYaml $groupTags -}}
{{- end -}}

{{/* Not empty if the chart itself renders the OAuth client's Secret. */}}
{{- define "tailscale-operator.rendersOAuthSecret" -}}
{{- if and .Values.oauth.clientId .Values.oauth.clientSecret -}}
true
{{- end -}}
{{- end -}}

{{/* Names of the values that are set of those that each give a way to join the tailnet. */}}
{{- define "tailscale-operator.credentials" -}}
{{- $ways := list -}}
{{- if or .Values.oauth.clientId .Values.oauth.clientSecret .Values.oauth.audience -}}
{{- $ways = append $ways "oauth.clientId, oauth.clientSecret or oauth.audience" -}}
{{- end -}}
{{- if .Values.oauth.secretName -}}
{{- $ways = append $ways "oauth.secretName" -}}
{{- end -}}
{{- if .Values.oauthSecretVolume -}}
{{- $ways = append $ways "oauthSecretVolume" -}}
{{- end -}}
{{- if .Values.authKey.secretName -}}
{{- $ways = append $ways "authKey.secretName" -}}
{{- end -}}
{{- join "; " $ways -}}
{{- end -}}

{{/*
Name of the Secret with the OAuth client that the pod mounts, or nothing. With no
credentials among the values it is the one that the chart would make: somebody has
made it before, or will, as the static manifests have it.
*/}}
{{- define "tailscale-operator.oauthSecret" -}}
{{- $made := include "tailscale-operator.derivedName" (dict "root" . "suffix" "oauth") -}}
{{- if .Values.oauth.secretName -}}
{{- .Values.oauth.secretName -}}
{{- else if include "tailscale-operator.rendersOAuthSecret" . -}}
{{- $made -}}
{{- else if include "tailscale-operator.credentials" . -}}
{{- else if or .Values.controllers.enabled (ne (include "tailscale-operator.mode" .) "false") -}}
{{- $made -}}
{{- end -}}
{{- end -}}

{{/* The operator's image. */}}
{{- define "tailscale-operator.image" -}}
{{- include "tailscale-operator.imageName" (dict "root" . "image" .Values.operatorConfig.image) -}}
{{- end -}}

{{/*
Full name of an image, from "root" and "image". A first part with a dot, a port or "localhost"
is a registry.
*/}}
{{- define "tailscale-operator.imageName" -}}
{{- $image := .image -}}
{{- $name := $image.repo | default $image.repository -}}
{{- with .root.Values.imageRegistry -}}
{{- $name = regexReplaceAll "^(?:localhost|[^/]*[.:][^/]*)/" $name "" -}}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/*
What the templates of workloads begin with, before a ProxyClass: the value workloads, with what
other values decide.
*/}}
{{- define "tailscale-operator.workloadDefaults" -}}
{{- $w := .Values.workloads -}}
{{- $image := .Values.operatorConfig.image -}}
{{- if or $w.image.repository $w.image.tag $w.image.digest -}}
{{- $image = dict "repository" ($w.image.repository | default $image.repo | default $image.repository) "tag" $w.image.tag "digest" $w.image.digest -}}
{{- end -}}
{{- $d := omit $w "image" -}}
{{- $_ := set $d "image" (include "tailscale-operator.imageName" (dict "root" . "image" $image)) -}}
{{- $_ := set $d "imagePullPolicy" ($w.image.pullPolicy | default .Values.operatorConfig.image.pullPolicy) -}}
{{- $_ := set $d "imagePullSecrets" .Values.imagePullSecrets -}}
{{- $_ := set $d "commonLabels" .Values.commonLabels -}}
{{- $_ := set $d "networkPolicy" .Values.networkPolicy -}}
{{- $_ := set $d "resources" (include "tailscale-operator.resources" .Values.workloads.resources | fromYaml) -}}
{{- $_ := set $d "allowFewerGroups" .Values.apiServerProxyConfig.impersonation.fewerGroups -}}
{{- $_ := set $d "allowSystemMasters" (has "system:masters" .Values.apiServerProxyConfig.impersonation.groups) -}}
{{- if include "tailscale-operator.openshift" . -}}
{{- $_ := set $d "podSecurityContext" (omit $w.podSecurityContext "runAsUser" "runAsGroup" "fsGroup") -}}
{{- $_ := set $d "securityContext" (omit $w.securityContext "runAsUser" "runAsGroup") -}}
{{- end -}}
{{- toYaml $d -}}
{{- end -}}

{{/* Images by the names of the values that choose them. */}}
{{- define "tailscale-operator.images" -}}
{{- $own := .Values.operatorConfig.image -}}
{{- $images := dict (ternary "operatorConfig.image.repository" "operatorConfig.image.repo" (empty $own.repo)) ($own.repo | default $own.repository) "workloads.image.repository" .Values.workloads.image.repository -}}
{{- range .Values.proxyGroups -}}
{{- $container := (((.pod | default dict).statefulSet | default dict).pod | default dict).tailscaleContainer | default dict -}}
{{- $_ := set $images (printf "proxyGroups: the image of %q" .name) ($container.image | default "") -}}
{{- end -}}
{{- range .Values.recorders -}}
{{- $container := (((.spec | default dict).statefulSet | default dict).pod | default dict).container | default dict -}}
{{- $_ := set $images (printf "recorders: the image of %q" .name) ($container.image | default "") -}}
{{- end -}}
{{- toYaml $images -}}
{{- end -}}

{{/* Names of Secrets, and what they are for. */}}
{{- define "tailscale-operator.secrets" -}}
{{- $secrets := dict (include "tailscale-operator.fullname" .) "the operator's state" -}}
{{- with include "tailscale-operator.oauthSecret" . -}}
{{- $_ := set $secrets . "the OAuth client" -}}
{{- end -}}
{{- with .Values.tls.secretName -}}
{{- $_ := set $secrets . "tls.secretName" -}}
{{- end -}}
{{- range .Values.imagePullSecrets -}}
{{- $_ := set $secrets .name "imagePullSecrets" -}}
{{- end -}}
{{- toYaml $secrets -}}
{{- end -}}

{{/* How long a replica may take to stop. */}}
{{- define "tailscale-operator.workloadGracePeriod" -}}
{{- with .Values.workloads -}}
{{- .terminationGracePeriodSeconds | default (add .withdrawDelaySeconds .drainTimeoutSeconds 20) | int64 -}}
{{- end -}}
{{- end -}}

{{/* Environment, mounts and volumes with the credentials for the Tailscale API. */}}
{{- define "tailscale-operator.apiEnv" -}}
{{- if .Values.oauth.audience }}
- name: CLIENT_ID
  value: {{ .Values.oauth.clientId | quote }}
{{- end }}
{{- if or .Values.oauthSecretVolume (include "tailscale-operator.oauthSecret" .) }}
- name: CLIENT_ID_FILE
  value: /oauth/client_id
- name: CLIENT_SECRET_FILE
  value: /oauth/client_secret
{{- end }}
{{- end -}}

{{- define "tailscale-operator.apiVolumeMounts" -}}
{{- if or .Values.oauthSecretVolume (include "tailscale-operator.oauthSecret" .) }}
- name: oauth
  mountPath: /oauth
  readOnly: true
{{- end }}
{{- if .Values.oauth.audience }}
- name: oidc-jwt
  mountPath: /var/run/secrets/tailscale/serviceaccount
  readOnly: true
{{- end }}
{{- end -}}

{{- /* From "root" and "optional": whether the pod starts without the Secret. */ -}}
{{- define "tailscale-operator.apiVolumes" -}}
{{- $secret := include "tailscale-operator.oauthSecret" .root -}}
{{- $optional := .optional -}}
{{- with .root.Values -}}
{{- if .oauthSecretVolume }}
- name: oauth
  {{- toYaml .oauthSecretVolume | nindent 2 }}
{{- else if $secret }}
- name: oauth
  secret:
    secretName: {{ $secret | quote }}
    {{- if $optional }}
    optional: true
    {{- end }}
    {{- if .oauth.secretName }}
    items:
      - key: {{ .oauth.clientIdKey | quote }}
        path: client_id
      - key: {{ .oauth.clientSecretKey | quote }}
        path: client_secret
    {{- end }}
{{- end }}
{{- if .oauth.audience }}
- name: oidc-jwt
  projected:
    sources:
      - serviceAccountToken:
          audience: {{ .oauth.audience | quote }}
          expirationSeconds: 3600
          path: token
{{- end }}
{{- end }}
{{- end -}}

{{/* Security contexts of the operator's pod and container. */}}
{{- define "tailscale-operator.podSecurityContext" -}}
{{- $context := .Values.operatorConfig.podSecurityContext -}}
{{- if include "tailscale-operator.openshift" . -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{- define "tailscale-operator.securityContext" -}}
{{- $context := .Values.operatorConfig.securityContext -}}
{{- if include "tailscale-operator.openshift" . -}}
{{- $context = omit $context "runAsUser" "runAsGroup" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Not empty if users and groups are left to OpenShift. */}}
{{- define "tailscale-operator.openshift" -}}
{{- $adapt := .Values.compatibility.openshift.adaptSecurityContext -}}
{{- if or (eq $adapt "force") (and (eq $adapt "auto") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) -}}
true
{{- end -}}
{{- end -}}

{{/*
Topology spread constraints. One without a selector would count no pods. Operators that wait to take over are of no use
on the node of the one that works.
*/}}
{{- define "tailscale-operator.topologySpreadConstraints" -}}
{{- $selector := dict "matchLabels" (include "tailscale-operator.selectorLabels" . | fromYaml) -}}
{{- $constraints := .Values.operatorConfig.topologySpreadConstraints -}}
{{- if and (not $constraints) (gt (int .Values.operatorConfig.replicas) 1) -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" -}}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- end -}}
{{- end -}}
{{- range $constraints }}
- {{ ternary . (merge (dict "labelSelector" $selector) .) (hasKey . "labelSelector") | toYaml | nindent 2 | trim }}
{{- end -}}
{{- end -}}

{{/* How a monitor scrapes a pod, from the monitor's values. */}}
{{- define "tailscale-operator.metricsEndpoint" -}}
- port: metrics
  path: /metrics
  {{- with .interval }}
  interval: {{ . | quote }}
  {{- end }}
  {{- with .scrapeTimeout }}
  scrapeTimeout: {{ . | quote }}
  {{- end }}
  {{- with .relabelings }}
  relabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/*
What selects the samples of this release. The pod's name is the Deployment's, with two
parts that Kubernetes adds: another release's name cannot be mistaken for it. Of a name longer
than 46 characters Kubernetes keeps the beginning.
*/}}
{{- define "tailscale-operator.samples" -}}
{{- $fullname := include "tailscale-operator.fullname" . -}}
namespace="{{ include "tailscale-operator.namespace" . }}",tailscale_com_parent_resource="",pod=~"{{ trunc 46 $fullname }}{{ ternary "-[a-z0-9]+-[a-z0-9]+" "[-a-z0-9]+" (le (len $fullname) 46) }}"
{{- end -}}

{{/* What selects the samples of the release's replicas: labels of their pods, which the monitors of this chart keep. */}}
{{- define "tailscale-operator.replicaSamples" -}}
namespace="{{ include "tailscale-operator.namespace" . }}",app_kubernetes_io_part_of="{{ .Release.Name }}"
{{- end -}}

{{/* Not empty if Go is to keep to the limit of the container's memory. Whoever sets GOMEMLIMIT knows better. */}}
{{- define "tailscale-operator.limitsMemory" -}}
{{- $names := list -}}
{{- range .Values.operatorConfig.extraEnv -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if and (dig "limits" "memory" "" .Values.operatorConfig.resources) (not (has "GOMEMLIMIT" $names)) -}}
true
{{- end -}}
{{- end -}}

{{/* The resources of pods, from those of the values. Pods that request nothing are the first that a full node
evicts. Whoever sets anything decides on all of it. */}}
{{- define "tailscale-operator.resources" -}}
{{- . | default (dict "requests" (dict "cpu" "50m" "memory" "64Mi")) | toYaml -}}
{{- end -}}

{{/* Longer than requests may drain, or the kubelet would cut them. */}}
{{- define "tailscale-operator.gracePeriod" -}}
{{- with .Values.operatorConfig -}}
{{- .terminationGracePeriodSeconds | default (add .drainTimeoutSeconds 15) | int64 -}}
{{- end -}}
{{- end -}}

{{/* Names of the variables that the chart sets and the value that decides each. */}}
{{- define "tailscale-operator.ownEnv" -}}
APISERVER_PROXY: apiServerProxyConfig.mode
CLIENT_ID: oauth.clientId
CLIENT_ID_FILE: oauth and oauthSecretVolume
CLIENT_SECRET_FILE: oauth and oauthSecretVolume
OPERATOR_HOSTNAME: operatorConfig.hostname
OPERATOR_INITIAL_TAGS: operatorConfig.defaultTags
OPERATOR_LOGGING: operatorConfig.logging
OPERATOR_LOGIN_SERVER: loginServer
OPERATOR_NAMESPACE: the release's namespace
OPERATOR_SECRET: fullnameOverride
POD_UID: nothing, it is the pod's UID
PROXY_DEFAULT_CLASS: proxyConfig.defaultProxyClass
PROXY_TAGS: proxyConfig.defaultTags
TS_AUTHKEY: authKey.secretName
{{- end -}}

{{/* Names of the flags that the chart sets and the value that decides each. */}}
{{- define "tailscale-operator.ownArgs" -}}
access-log: apiServerProxyConfig.accessLog
allow-fewer-groups: apiServerProxyConfig.impersonation.fewerGroups
allow-system-masters: apiServerProxyConfig.impersonation.groups
auth-key-file: authKey.secretName
controllers: controllers.enabled
drain-timeout: operatorConfig.drainTimeoutSeconds
id-token-file: oauth.audience
impersonator: fullnameOverride
install-crds: installCRDs
leader-election-id: fullnameOverride
metrics-address: metrics.port
operator-name: fullnameOverride
release: nothing, it is the release's name
state-dir: nothing, it is a volume of the pod
tls: tls.source
tls-cert-file: tls.secretName
tls-key-file: tls.secretName
workloads-dir: nothing, it is a volume of the pod
{{- end -}}

{{/*
Names of the values without effect that were set to other than their default. They
are the official chart's, for what is not part of this one.
*/}}
{{- define "tailscale-operator.withoutEffect" -}}
{{- $set := list -}}
{{- if .Values.operatorConfig.sharedACMEAccountKey }}{{ $set = append $set "operatorConfig.sharedACMEAccountKey" }}{{ end -}}
{{- if ne .Values.ingressClass.name "tailscale" }}{{ $set = append $set "ingressClass.name" }}{{ end -}}
{{- if not .Values.ingressClass.enabled }}{{ $set = append $set "ingressClass.enabled" }}{{ end -}}
{{- if ne .Values.proxyConfig.image.repository "tailscale/tailscale" }}{{ $set = append $set "proxyConfig.image.repository" }}{{ end -}}
{{- if .Values.proxyConfig.image.repo }}{{ $set = append $set "proxyConfig.image.repo" }}{{ end -}}
{{- if .Values.proxyConfig.image.tag }}{{ $set = append $set "proxyConfig.image.tag" }}{{ end -}}
{{- if .Values.proxyConfig.image.digest }}{{ $set = append $set "proxyConfig.image.digest" }}{{ end -}}
{{- if ne .Values.proxyConfig.firewallMode "auto" }}{{ $set = append $set "proxyConfig.firewallMode" }}{{ end -}}
{{- range .Values.operatorConfig.extraEnv -}}
{{- $use := get (dict "K8S_PROXY_IMAGE" " (use workloads.image)" "PROXY_PRIORITY_CLASS_NAME" " (use workloads.priorityClassName)") .name -}}
{{- if or $use (has .name (list "PROXY_IMAGE" "PROXY_FIREWALL_MODE" "OPERATOR_INGRESS_CLASS_NAME" "OPERATOR_DEFAULT_LOAD_BALANCER" "OPERATOR_SHARED_ACME_ACCOUNT_KEY")) -}}
{{- $set = append $set (printf "%s of operatorConfig.extraEnv%s" .name $use) -}}
{{- end -}}
{{- end -}}
{{- toYaml $set -}}
{{- end -}}
