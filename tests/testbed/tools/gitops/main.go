// Says how Argo CD and Flux see Kubernetes objects: their own code, asked about objects from stdin.
//
//	gitops PATCH <objects.json >judgements.json
//
// PATCH is what an administrator merges into Argo CD's ConfigMap; stdin holds a JSON list of objects,
// stdout gets a list of {"argocd", "argocdMessage", "flux", "fluxMessage"} in the same order.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"os"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/health"
	"github.com/argoproj/argo-cd/v3/common"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/argo-cd/v3/util/settings"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"
)

const namespace = "argocd"

type judgement struct {
	ArgoCD        string `json:"argocd"`
	ArgoCDMessage string `json:"argocdMessage"`
	Flux          string `json:"flux"`
	FluxMessage   string `json:"fluxMessage"`
}

func main() {
	text, err := io.ReadAll(os.Stdin)
	check(err)
	var objects []map[string]any
	check(utiljson.Unmarshal(text, &objects)) // whole numbers as int64, as a client reads them
	overrides := overridesOf(os.Args[1])
	found := make([]judgement, len(objects))
	for i, object := range objects {
		found[i] = judged(&unstructured.Unstructured{Object: object}, overrides)
	}
	check(json.NewEncoder(os.Stdout).Encode(found))
}

// overridesOf returns what Argo CD reads of its ConfigMap, as its settings manager reads it.
func overridesOf(patch string) lua.ResourceHealthOverrides {
	text, err := os.ReadFile(patch)
	check(err)
	var configMap corev1.ConfigMap
	check(yaml.UnmarshalStrict(text, &configMap))
	configMap.ObjectMeta = named(common.ArgoCDConfigMapName)
	secret := corev1.Secret{
		ObjectMeta: named(common.ArgoCDSecretName),
		Data:       map[string][]byte{"admin.password": []byte("x"), "server.secretkey": []byte("x")},
	}
	manager := settings.NewSettingsManager(
		context.Background(), fake.NewClientset(&secret, &configMap), namespace,
	)
	check(manager.ResyncInformers())
	overrides, err := manager.GetResourceOverrides()
	check(err)
	return overrides
}

func named(name string) metav1.ObjectMeta {
	labels := map[string]string{"app.kubernetes.io/part-of": "argocd"}
	return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels}
}

func judged(object *unstructured.Unstructured, overrides lua.ResourceHealthOverrides) judgement {
	var found judgement
	argocd, err := health.GetResourceHealth(object, overrides)
	check(err)
	if argocd != nil { // nil: it has no check of this kind, and counts the object as healthy
		found.ArgoCD, found.ArgoCDMessage = string(argocd.Status), argocd.Message
	}
	flux, err := status.Compute(object)
	check(err)
	found.Flux, found.FluxMessage = flux.Status.String(), flux.Message
	return found
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
