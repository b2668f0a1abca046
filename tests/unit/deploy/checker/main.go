// Loads deployment files as their own tools do, and prints the result for a test:
//
//	checker compose FILE     the compose file as JSON, with the variables of the environment
//	checker kustomize DIR... the objects of each kustomization as a JSON array of arrays
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func main() {
	load := map[string]func([]string) ([]byte, error){"compose": compose, "kustomize": kustomize}[os.Args[1]]
	text, err := load(os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.Write(text)
}

func compose(files []string) ([]byte, error) {
	options, err := cli.NewProjectOptions(files, cli.WithOsEnv)
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return project.MarshalJSON()
}

func kustomize(folders []string) ([]byte, error) {
	all := [][]any{}
	for _, folder := range folders {
		found, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
		if err != nil {
			return nil, err
		}
		objects := []any{}
		for _, each := range found.Resources() {
			object, err := each.Map()
			if err != nil {
				return nil, err
			}
			objects = append(objects, object)
		}
		all = append(all, objects)
	}
	return json.Marshal(all)
}
